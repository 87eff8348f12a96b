%%% Serves Erlang functions to Python: keeps their names, and sees to the process of each call.
%%%
%%% The functions stand in a table of the supervisor's, so that they outlive this process. Python sends
%%% `{py_function, Call}' and sleeps; this process starts one for the call, linked, which takes name and
%%% arguments out of it, runs the function and answers. It never handles an argument or a result
%%% itself, so a large one holds up nobody else.
%%%
%%% What can end a call: the process answers; the process dies, which its exit signal tells us and we
%%% tell Python; Python gives up, and we kill the process; this process ends, which native code tells
%%% Python, and the links end the processes of the calls.
%%%
%%% Every Python thread waits for its call, so there are never more calls than threads; what is given
%%% up before it has begun is bounded by native code.
-module(py_reactor_functions).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0, make_table/0, register/2, unregister/1, names/0]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([target/0]).

-type target() :: fun() | {module(), Function :: atom()}.
%% What Python may call. It is applied to the arguments.

-type calls() :: #{pid() => py_nif:function_call()}.
%% The processes that run functions.

%% Rows: {{function, Name}, Function}, and {reserved, Names}.
-define(TABLE, ?MODULE).

%% Characters of a reason: enough to know it again, few enough for a line of a log.
-define(MAX_TEXT_CHARS, 4000).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, no_argument, []).

%% @doc Makes the table. Called by the supervisor, so that it outlives this process.
-spec make_table() -> ok.
make_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

%% @doc Names a function, or replaces the one that has the name.
-spec register(Name :: binary(), target()) -> ok | {error, py:register_reason()}.
register(Name, Function) ->
    call({register, Name, Function}).

%% @doc Takes a name away. Calls that run go on.
-spec unregister(Name :: binary()) -> ok | {error, unknown_function | not_running}.
unregister(Name) ->
    call({unregister, Name}).

%% @doc The names of all functions, sorted.
-spec names() -> [binary()].
names() ->
    try
        lists:sort(ets:select(?TABLE, [{{{function, '$1'}, '_'}, [], ['$1']}]))
    catch
        %% The application is not running.
        error:badarg -> []
    end.

call(Request) ->
    try
        gen_server:call(?MODULE, Request, infinity)
    catch
        exit:{_Reason, {gen_server, call, _}} -> {error, not_running}
    end.

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init(no_argument) -> {ok, calls()}.
init(no_argument) ->
    process_flag(trap_exit, true),
    ok = learn_reserved_names(),
    ok = py_nif:functions_set(names()),
    ok = py_nif:functions_serve(),
    {ok, #{}}.

%% @private
-spec handle_call(term(), gen_server:from(), calls()) -> {reply, term(), calls()}.
handle_call({register, Name, Function}, _From, Calls) ->
    {reply, add(Name, Function), Calls};
handle_call({unregister, Name}, _From, Calls) ->
    {reply, remove(Name), Calls};
handle_call(Call, _From, Calls) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, Calls}.

%% @private
-spec handle_cast(term(), calls()) -> {noreply, calls()}.
handle_cast(Cast, Calls) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, Calls}.

%% @private
-spec handle_info(term(), calls()) -> {noreply, calls()}.
handle_info({py_function, Call}, Calls) when is_reference(Call) ->
    Pid = proc_lib:spawn_link(fun() -> run(Call) end),
    {noreply, Calls#{Pid => Call}};
handle_info({py_function_over, Pid}, Calls) when is_map_key(Pid, Calls) ->
    true = exit(Pid, kill),
    {noreply, Calls};
handle_info({py_function_over, Pid}, Calls) when is_pid(Pid) ->
    %% It has ended in the meantime.
    {noreply, Calls};
handle_info({'EXIT', Pid, Reason}, Calls) when is_map_key(Pid, Calls) ->
    {Call, Others} = maps:take(Pid, Calls),
    ok = ended(Call, Reason),
    {noreply, Others};
handle_info(Message, Calls) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, Calls}.

%% @private
-spec terminate(term(), calls()) -> ok.
terminate(_Reason, Calls) ->
    ok = py_nif:functions_set([]),
    _ = [exit(Pid, kill) || Pid <- maps:keys(Calls)],
    ok.

%%--------------------------------------------------------------------------------------------------
%% Names

%% What the package has is asked of Python, once: later, in a restart of this process alone, every
%% thread for calls may be busy, even with calls that wait for us.
learn_reserved_names() ->
    case ets:member(?TABLE, reserved) of
        true ->
            ok;
        false ->
            {ok, Names} = py:call('erlang._functions', reserved, []),
            true = ets:insert(?TABLE, {reserved, Names}),
            ok
    end.

add(Name, Function) ->
    case check_name(Name) of
        ok ->
            true = ets:insert(?TABLE, {{function, Name}, Function}),
            py_nif:functions_set(names());
        {error, _} = Error ->
            Error
    end.

remove(Name) ->
    case ets:take(?TABLE, {function, Name}) of
        [_] -> py_nif:functions_set(names());
        [] -> {error, unknown_function}
    end.

check_name(Name) ->
    case {is_identifier(Name), is_reserved(Name)} of
        {false, _} -> bad_name(Name, "is no identifier of Python");
        {true, true} -> bad_name(Name, "is taken: by Python, or by its package erlang");
        {true, false} -> ok
    end.

bad_name(Name, Problem) ->
    {error, {bad_name, unicode:characters_to_binary([Name, " ", Problem])}}.

%% https://docs.python.org/3/reference/lexical_analysis.html#identifiers: letters, digits and the like;
%% and Python reads every identifier in its normal form NFKC, so another form could not be imported.
is_identifier(Name) ->
    re:run(Name, "^[\\p{L}\\p{Nl}_][\\p{L}\\p{Nl}\\p{Mn}\\p{Mc}\\p{Nd}\\p{Pc}]*\\z", [unicode]) =/= nomatch andalso
        unicode:characters_to_nfkc_binary(Name) =:= Name.

%% Names like `__path__' are asked for by Python itself.
is_reserved(Name) ->
    [{reserved, Names}] = ets:lookup(?TABLE, reserved),
    lists:member(Name, Names) orelse re:run(Name, "^__.*__$", [unicode]) =/= nomatch.

%%--------------------------------------------------------------------------------------------------
%% The process of a call

run(Call) ->
    try py_nif:function_begin(Call) of
        {Name, Args} ->
            _ = py_nif:function_answer(Call, answer(Name, Args)),
            ok;
        abandoned ->
            ok
    catch
        %% Another reference, in a message that did not come from Python.
        error:badarg ->
            ?LOG_WARNING(#{
                what => unexpected_message, process => ?MODULE, message => {py_function, Call}
            })
    end.

answer(Name, Args) ->
    case ets:lookup(?TABLE, {function, Name}) of
        [{_, Function}] ->
            case takes(Function, length(Args)) of
                true -> perform(Function, Args);
                false -> {bad_arity, bad_arity(Name, length(Args))}
            end;
        [] ->
            {unknown, <<"no Erlang function is registered as '", Name/binary, "'">>}
    end.

takes({Module, Function}, Arity) ->
    %% If there is no such module, the function is not exported either.
    _ = code:ensure_loaded(Module),
    erlang:function_exported(Module, Function, Arity);
takes(Function, Arity) ->
    is_function(Function, Arity).

bad_arity(Name, Count) ->
    text("the Erlang function '~ts' does not take ~b argument(s)", [Name, Count]).

perform(Function, Args) ->
    try
        {ok, perform_on(Function, Args)}
    catch
        Kind:Reason:Stacktrace ->
            {raised, {Kind, Reason, reason_text(Reason), stacktrace_text(Stacktrace)}}
    end.

perform_on({Module, Function}, Args) -> apply(Module, Function, Args);
perform_on(Function, Args) -> apply(Function, Args).

%% An answer that was given already stands: this one is then dropped.
ended(_Call, normal) ->
    ok;
ended(Call, Reason) ->
    _ = py_nif:function_answer(Call, {raised, {exit, Reason, reason_text(Reason), <<>>}}),
    ok.

%%--------------------------------------------------------------------------------------------------
%% Exceptions as text

reason_text(Reason) ->
    text("~0tp", [Reason]).

stacktrace_text(Stacktrace) ->
    Frames = lists:takewhile(fun(Frame) -> element(1, Frame) =/= ?MODULE end, Stacktrace),
    unicode:characters_to_binary(lists:join($\n, [frame_text(Frame) || Frame <- Frames])).

frame_text({Module, Function, Arity, Location}) ->
    [text("~ts:~ts/~b", [Module, Function, arity(Arity)]), location_text(Location)].

arity(Args) when is_list(Args) -> length(Args);
arity(Arity) -> Arity.

location_text(Location) ->
    case {proplists:get_value(file, Location), proplists:get_value(line, Location)} of
        {File, Line} when File =/= undefined, Line =/= undefined ->
            text(" (~ts, line ~b)", [File, Line]);
        _ ->
            ""
    end.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args, [{chars_limit, ?MAX_TEXT_CHARS}])).
