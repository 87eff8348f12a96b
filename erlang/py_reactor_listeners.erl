%%% All listeners: their names, and the supervisor of those that belong to no other one.
%%%
%%% The names are a table that belongs to the top supervisor, and that callers read by themselves. The
%%% row of a listener lives as long as its supervisor: a row whose supervisor is gone counts for nothing,
%%% and goes when the next listener starts.
-module(py_reactor_listeners).

-behaviour(supervisor).

%% The supervisor
-export([start_link/0, start/2, start_listener/2, is_child/1, stop/1]).
%% Names
-export([make_table/0, register/1, publish/3, unregister/2, find/1, names/0]).

%% supervisor callbacks
-export([init/1]).

-export_type([name/0]).

-type name() :: term().

%% Rows: {Name, Supervisor, Handle, Options}; the handle is the native one, `none' until the socket is
%% open.
-define(TABLE, ?MODULE).

%% How long contexts have to import a protocol before it is taken that a callback holds them up.
-define(PREPARE_MS, 1000).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, no_argument).

%% @doc Starts a listener under this supervisor.
%%
%% Its protocol is imported here, in the caller: an import that takes long keeps nobody else waiting.
-spec start(name(), py_reactor_listener_options:options()) ->
    {ok, pid()} | {error, py_reactor:listen_reason()}.
start(Name, Options) ->
    prepared(Name, Options, fun(Checked, Recipe) ->
        WasOpen = atomics:new(1, []),
        try
            supervisor:start_child(?MODULE, [Name, Checked, Recipe, WasOpen])
        catch
            exit:{noproc, _} -> {error, not_running}
        end
    end).

%% @doc Starts a listener under the calling supervisor.
-spec start_listener(name(), py_reactor_listener_options:options()) ->
    {ok, pid()} | {error, py_reactor:listen_reason()}.
start_listener(Name, Options) ->
    prepared(Name, Options, fun(Checked, Recipe) ->
        py_reactor_listener_sup:start_link(Name, Checked, Recipe, atomics:new(1, []))
    end).

%% @doc Whether the supervisor of a listener is a child of this one.
-spec is_child(pid()) -> boolean().
is_child(Supervisor) ->
    try supervisor:get_childspec(?MODULE, Supervisor) of
        {ok, _} -> true;
        {error, not_found} -> false
    catch
        exit:{noproc, _} -> false
    end.

%% @doc Ends the supervisor of a listener, if it is a child of this one.
-spec stop(pid()) -> ok | {error, not_found}.
stop(Supervisor) ->
    supervisor:terminate_child(?MODULE, Supervisor).

prepared(Name, Options, Start) ->
    case {py_reactor_listener_options:check(Options), find(Name)} of
        {{ok, Checked}, {error, not_found}} -> prepared_checked(Checked, Start);
        {{ok, _}, {ok, Supervisor, _, _}} -> {error, {already_started, Supervisor}};
        {{ok, _}, {error, not_running}} -> {error, not_running};
        {{error, _} = Error, _} -> Error
    end.

prepared_checked(#{protocol := Protocol, info := Info, contexts := Contexts} = Checked, Start) ->
    case py_nif:recipe_new(named(Protocol), Info) of
        {ok, Recipe} ->
            case prepare(Recipe, Protocol, Contexts) of
                ok -> Start(Checked, Recipe);
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

named(undefined) ->
    undefined;
named({Module, Name, Kwargs}) ->
    {py_reactor_listener_options:name(Module), py_reactor_listener_options:name(Name), Kwargs}.

%% Contexts that start later import by themselves.
prepare(Recipe, Protocol, Contexts) ->
    case py_reactor_pool:handles(Contexts) of
        [] ->
            {error, no_context};
        _ when Protocol =:= undefined ->
            ok;
        Handles ->
            Deadline = erlang:monotonic_time(millisecond) + ?PREPARE_MS,
            Tickets = [py_nif:recipe_prepare(Recipe, Handle) || Handle <- in_time(Handles)],
            case first_error(Tickets, Deadline) of
                timeout -> check(named(Protocol));
                Verdict -> Verdict
            end
    end.

%% All contexts are held up, maybe by a callback that waits for this very call. They import later; whether
%% that will succeed is seen on a thread for calls.
check({Module, Name, _Kwargs}) ->
    case py:call('erlang.reactor', '_check_protocol', [Module, Name]) of
        {error, {_Class, _Message, Traceback}} -> {error, {protocol, Traceback}};
        {ok, none} -> ok;
        %% The calls are held up as well.
        {error, _} -> ok
    end.

%% A context that a callback holds up imports later, if there is another one to tell whether the
%% import succeeds.
in_time(Handles) ->
    case [Handle || Handle <- Handles, not py_reactor_pool:is_held_up(Handle)] of
        [] -> Handles;
        InTime -> InTime
    end.

first_error([], _Deadline) ->
    ok;
first_error([Ticket | Tickets], Deadline) ->
    receive
        {Ticket, ok} ->
            first_error(Tickets, Deadline);
        {Ticket, {error, no_context}} ->
            %% It ended, or has no time to read: it will import later.
            first_error(Tickets, Deadline);
        {Ticket, {error, _} = Error} ->
            _ = [forgotten(Other) || Other <- Tickets],
            Error
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
        _ = [forgotten(Other) || Other <- [Ticket | Tickets]],
        timeout
    end.

%% No message stays behind.
forgotten(Ticket) ->
    case py_nif:cancel(Ticket) of
        true ->
            ok;
        false ->
            receive
                {Ticket, _} -> ok
            end
    end.

%%--------------------------------------------------------------------------------------------------
%% Names

%% @doc Makes the table. Called by the top supervisor.
-spec make_table() -> ok.
make_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

%% @doc Reserves a name for the calling supervisor.
-spec register(name()) -> ok | {error, {already_started, pid()} | not_running}.
register(Name) ->
    try
        _ = [
            ets:delete_object(?TABLE, Row)
         || {_, Pid, _, _} = Row <- rows(), not is_process_alive(Pid)
        ],
        case {ets:insert_new(?TABLE, {Name, self(), none, #{}}), ets:lookup(?TABLE, Name)} of
            {true, _} -> ok;
            {false, [{_, Supervisor, _, _}]} -> {error, {already_started, Supervisor}};
            %% It ended just then.
            {false, []} -> register(Name)
        end
    catch
        error:badarg -> {error, not_running}
    end.

%% @doc The calling supervisor's listener is open: from now on it is found under its name.
-spec publish(name(), py_nif:listener(), py_reactor_listener_options:checked()) -> ok.
publish(Name, Handle, Options) ->
    true = ets:insert(?TABLE, {Name, self(), Handle, Options}),
    ok.

%% @doc Takes back the name of a listener that ends, unless it is another one's by now.
-spec unregister(name(), pid()) -> ok.
unregister(Name, Supervisor) ->
    try
        _ = [
            ets:delete_object(?TABLE, Row)
         || {_, Pid, _, _} = Row <- ets:lookup(?TABLE, Name), Pid =:= Supervisor
        ],
        ok
    catch
        %% The application has ended, and the table with it.
        error:badarg -> ok
    end.

-spec find(name()) ->
    {ok, pid(), py_nif:listener(), py_reactor_listener_options:checked()}
    | {error, not_found | not_running}.
find(Name) ->
    case lookup(Name) of
        [{_, Supervisor, Handle, Options}] when Handle =/= none ->
            case is_process_alive(Supervisor) of
                true -> {ok, Supervisor, Handle, Options};
                false -> {error, not_found}
            end;
        Rows when is_list(Rows) ->
            {error, not_found};
        not_running ->
            {error, not_running}
    end.

-spec names() -> [name()].
names() ->
    lists:sort([Name || {Name, Pid, Handle, _} <- rows(), Handle =/= none, is_process_alive(Pid)]).

lookup(Name) ->
    try
        ets:lookup(?TABLE, Name)
    catch
        error:badarg -> not_running
    end.

rows() ->
    try
        ets:tab2list(?TABLE)
    catch
        error:badarg -> []
    end.

%%--------------------------------------------------------------------------------------------------
%% supervisor

%% @private
-spec init(no_argument) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(no_argument) ->
    %% One that is killed again and again must not take the others along, nor the application.
    Flags = #{strategy => simple_one_for_one, intensity => 100, period => 1},
    Child = #{
        id => listener,
        start => {py_reactor_listener_sup, start_link, []},
        type => supervisor,
        shutdown => infinity
    },
    {ok, {Flags, [Child]}}.
